"""Writing facts into weights: model adapter, target values, keys, covariances, closed-form editors, deltas.

Needs torch, transformers, pydantic, safetensors and numpy; neither ray, faiss nor mlflow.
"""
