"""Is what the file computes what the model computes?"""
