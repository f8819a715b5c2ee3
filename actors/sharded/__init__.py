"""A model spread over several processes: DeepSpeed's tensor-parallel layers behind the interface of an unsharded one.

Every rank runs the same code on the same inputs; only the layers' inner collectives know that each holds a part
(docs/decisions/0005). Nothing here imports deepspeed until a sharded model is loaded.
"""
