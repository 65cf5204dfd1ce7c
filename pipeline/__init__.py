"""Filter-then-Weight: online, optimizer-aware data selection for fine-tuning on DeepSpeed (arXiv
2604.00001)."""
