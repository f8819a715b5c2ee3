"""Modules: what a layer computes beside or instead of its edited map, as content-addressed tensors with a rule.

A module stands at an edited map and changes its output as a pass goes by. Everywhere else it is a slot with a number
(``module_number``) whose content is a tensor of bytes (`packed`): so it is stored, compared, sent and taken out by
whatever does so with a map's weight.
"""
