"""The Ray shells: covariance workers, editor, retrieval, evaluation. The only room that imports ray.

An actor is a thin shell over a plain class and holds nothing that only it knows; ``errata.actors.cluster`` is what the
orchestrator talks to.
"""
