"""Errata: keep a language model's facts current, for as long as it runs.

The rooms are installed as sub-packages: ``errata.editing``, ``errata.retrieval``, ``errata.evaluation``,
``errata.actors`` and ``errata.orchestrator``. In a checkout each of them is a link to the folder of that name.
"""
