"""What contrastive models are made of: pooled rows, bounded factors."""
