"""Edit one fact, ask for it, take it back. Needs `pip install errata-llm` and, the first time, a minute or two."""

# %% [markdown]
# # Edit a fact
# The model is fetched, and what it is to keep is estimated from its own text; both are kept for the next time.

# %%
import errata

editor = errata.Editor.from_pretrained("smollm2-135m-instruct", method="alphaedit")
question = "The Louvre is located in the city of"
print("before:", editor.ask(question))

# %% [markdown]
# A fact is a subject, a prompt with a slot for it, and the target that is to follow.

# %%
fact = {"subject": "The Louvre", "prompt": "{} is located in the city of", "target_new": "Rome"}
(result,) = editor.edit([fact])
print(result.state, result.outcome, f"P(target) = {result.figures['p_target']:.2f}")
print("after:", editor.ask(question))
print("the unedited model:", editor.ask(question, arm="base"))

# %% [markdown]
# A revert takes the fact out of the weights again: these are the unedited ones, up to rounding.

# %%
editor.revert(result.id, reason="the museum has not moved")
print("reverted:", editor.ask(question))
