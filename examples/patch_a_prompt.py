"""Where is the name? Patch the residual stream of a prompt, layer by layer and token by token.

    python examples/patch_a_prompt.py

Two prompts differ in one name. Each cell of the sweep takes one clean activation into the corrupt run and asks how much
of the answer comes back: 1 is all of it. The engine answers 420 questions for the price of about 17 forward passes.
"""

from __future__ import annotations

import trimtab
from trimtab import logit_diff

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"

lm = trimtab.load("smollm2-135m-instruct")
clean, corrupt = lm.prompts(CLEAN), lm.prompts(CORRUPT)
mary, john = lm.token(" Mary"), lm.token(" John")
readout = logit_diff([mary], [john])

source = lm.run(clean, read="L*.resid_pre")
cells = [f"L{layer}.resid_pre@{p} set from clean" for layer in range(lm.anatomy.n_layers) for p in range(clean.width)]
print(lm.plan(corrupt, cells, readout, runs={"clean": source}))

sweep = lm.counterfactuals(corrupt, cells, readout, runs={"clean": source})
best = lm.counterfactuals(clean, ["embed scale 1"], readout).base
restored = (sweep.effects / (best - sweep.base)).view(lm.anatomy.n_layers, clean.width)

print("\nshare of the logit difference restored, every third layer")
print(" " * 4 + "".join(f"{token.strip():>6}" for token in clean.tokens[0]))
for layer in range(0, lm.anatomy.n_layers, 3):
    print(f"L{layer:<3}" + "".join(f"{share:6.2f}" for share in restored[layer].tolist()))
