"""What becomes of a store that is damaged, full, shared or killed: python -m benchmarks.faults"""
