"""A hundred edits with a journal, and a revert: a run that the commands read. Needs about ten minutes on two cores."""

# %% [markdown]
# # A hundred edits and a revert
# With `journal=DIR` every batch is a commit that outlives this process: `errata log DIR` lists them.

# %%
import json
import os
import tempfile
from pathlib import Path

import errata
from errata.orchestrator.config.presets import configs_root

count = int(os.environ.get("EXAMPLE_EDITS", "100"))
lines = (configs_root() / "streams" / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
facts = [json.loads(line) for line in lines[:count]]
directory = Path(tempfile.mkdtemp()) / "hundred"
editor = errata.Editor.from_pretrained("smollm2-135m-instruct", journal=directory)

# %%
results = editor.edit(facts)
applied = [result for result in results if result.state == "applied"]
landed = [result for result in applied if result.outcome == "landed"]
print(f"{len(results)} facts: {len(applied)} applied, {len(landed)} of them landed")

# %% [markdown]
# One of them was wrong. The others keep what they are: their answers are asked before and after.

# %%
wrong, kept = landed[0], {result.id for result in landed[1:]}
editor.revert(wrong.id, reason="a source withdrew it")
still = [result for result in editor.results() if result.id in kept and result.outcome == "landed"]
print(f"{wrong.id} is {next(r.state for r in editor.results() if r.id == wrong.id)}")
print(f"{len(still)} of {len(kept)} others still landed")
print(f"version {editor.version[:12]}; look with: errata log {directory}")
editor.close()
