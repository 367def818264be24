"""The intermediate representation: dims, types, graphs and their text form."""
