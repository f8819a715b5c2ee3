"""Put the same questions to four ways of knowing: the base, the weights, the memory, both. Needs the extra `memory`."""

# %% [markdown]
# # Ways of knowing
# A fact can be written into the weights, or be kept as a sentence that the model is shown when it is asked.
# `efficacy` is the edit's own prompt, `generalization` other words for it, `specificity` facts that must not move.

# %%
import errata
from errata.editing.checkpoint.fetch import fetch

fetch("all-minilm-l6-v2")  # finds the sentences of the memory
facts = [
    {
        "subject": "The Louvre",
        "prompt": "{} is located in the city of",
        "target_new": "Rome",
        "paraphrases": ["If you want to visit the Louvre, travel to", "The city that is home to the Louvre is"],
        "neighborhood": [{"prompt": "The Eiffel Tower is located in the city of", "answer": "Paris"}],
    },
    {
        "subject": "Toyota",
        "prompt": "The headquarters of {} are in",
        "target_new": "Germany",
        "paraphrases": ["Toyota is a company from", "The country in which Toyota has its headquarters is"],
        "neighborhood": [{"prompt": "The headquarters of Ford are in", "answer": "Michigan"}],
    },
]
editor = errata.Editor.from_pretrained("smollm2-135m-instruct")
for result in editor.edit(facts):
    print(result.id, result.state, result.outcome)

# %%
found = editor.evaluate(facts, arms=["base", "edited", "memory", "edited_memory"])
metrics = ["efficacy", "generalization", "specificity"]
print(f"{'':<15}" + "".join(f"{name:>16}" for name in metrics))
for arm, values in found.items():
    print(f"{arm:<15}" + "".join(f"{values[name]:>16.2f}" for name in metrics))

# %%
for arm in found:
    print(f"{arm:<15}", editor.ask("The city that is home to the Louvre is", arm=arm))
