"""What `benchmarks/criteria.py` is made of: real images, a small ResNet, the ways to prune it, and a page of curves."""
