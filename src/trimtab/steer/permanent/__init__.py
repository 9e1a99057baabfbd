"""Permanent forms: an intervention written into weights, so that any program runs it without this package.

    merge_bias     added vectors as biases (`bias.py`)
    write_lora     low-rank weight patches as a peft adapter (`lora.py`)
    write_model    patches and biases merged, as a Hugging Face folder (`folder.py`)
    model_card     what was done, how to undo it, what it does (`card.py`)

What is written is loaded again and compared on logits with the intervention before it counts as written.
"""

from trimtab.steer.permanent.bias import BiasMerge, merge_bias
from trimtab.steer.permanent.card import model_card
from trimtab.steer.permanent.checked import Written
from trimtab.steer.permanent.folder import write_model
from trimtab.steer.permanent.lora import write_lora

__all__ = ["BiasMerge", "Written", "merge_bias", "model_card", "write_lora", "write_model"]
