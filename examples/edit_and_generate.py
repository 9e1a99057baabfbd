"""Change a model on the way, and let it speak: edits are values that can be printed, saved and loaded.

python examples/edit_and_generate.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trimtab
from trimtab import Intervention

lm = trimtab.load("smollm2-135m-instruct")
france = lm.prompts("The capital of France is the city of", spans={"country": "France"})
italy = lm.prompts("The capital of Italy is the city of", spans={"country": "Italy"})

# What the residual stream holds at the country, taken from one prompt into the other.
source = lm.run(italy, read="L5.resid_post", logits=False)
swap = Intervention.of("L5.resid_post@country set from italy")
print("plain:  ", lm.generate(france, max_new_tokens=4)[0])
print(f"{swap}:", lm.generate(france, swap, runs={"italy": source}, max_new_tokens=4)[0])

# The same as a vector that needs no other run, saved and loaded again.
both = [lm.run(prompts, read="L5.resid_post@country")["L5.resid_post@country"][0, 0] for prompts in (italy, france)]
steer = Intervention.of(trimtab.Edit("L5.resid_post@country", "add", both[0] - both[1]))
with tempfile.TemporaryDirectory() as folder:
    steer.save(Path(folder) / "italy.safetensors")
    steer = Intervention.load(Path(folder) / "italy.safetensors")
print(f"{steer}:", lm.generate(france, steer, max_new_tokens=4)[0])

# Inside the block every call is edited, also those of lm.hf itself; afterwards nothing is left.
with lm.edited(["L0.head[1] scale 0", "L0.head[4] scale 0"]):
    print("two heads off:", lm.generate(france, max_new_tokens=4)[0])
