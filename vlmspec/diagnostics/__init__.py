"""Problems told to the user: where they are, what they mean and how they are printed."""
