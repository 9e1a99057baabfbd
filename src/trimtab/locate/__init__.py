"""Locating methods, one file per family: plain functions from a model and a task to `Scores` or another value.

    magnitude     magnitude_contrast, activation_magnitude, massive_activations, language_entropy
    gradient      attribution_patching, atp_star, integrated_gradients, gradient_input, saliency, taylor, fisher
    causal        patching, ablation, shift, causal_tracing, path_patching, text_noise
    direct        direct_logit_attribution, log_probability_increase, query_neurons, comparative_neurons
    vocabulary    logit_lens, logit_lens_scores, train_tuned_lens, layer_contrast, patchscope
    neurons       knowledge_neurons, language_neurons
    probing       probe, fit_probe, fit_monitor, watch
    attention     attention_mass, induction_score, copying_score, head_roles, role_graph, composition

Those of the first two rows propose, and an intervention disposes: `evaluate.verify` puts any scores to the test.
"""

from trimtab.locate.ablation import ablation
from trimtab.locate.atp_star import atp_star
from trimtab.locate.attention import (
    attention_entropy,
    attention_mass,
    duplicate_token_score,
    induction_score,
    previous_token_score,
    sink_mass,
)
from trimtab.locate.attribution import Attribution, logit_attribution
from trimtab.locate.attribution_patching import attribution_maps, attribution_patching
from trimtab.locate.audit import audit_scores
from trimtab.locate.circuits_qk_ov import Circuits, composition, ov_circuit, qk_circuit
from trimtab.locate.copying import copying_score, ov_copying_score
from trimtab.locate.direct import direct_logit_attribution
from trimtab.locate.gradients import fisher, gradient_input, saliency, taylor, token_scores
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.locate.knowledge_neurons import knowledge_neurons, shared_neurons
from trimtab.locate.language_entropy import activation_probability, language_entropy, language_neurons
from trimtab.locate.layer_contrast import dola, layer_contrast
from trimtab.locate.lens import logit_lens
from trimtab.locate.lens_scores import first_layer, logit_lens_scores
from trimtab.locate.magnitude import activation_magnitude, magnitude_contrast
from trimtab.locate.massive import massive_activations
from trimtab.locate.methods import method, methods
from trimtab.locate.monitor_report import score_monitor
from trimtab.locate.monitors import fit_monitor
from trimtab.locate.neuron_attribution import comparative_neurons, log_probability_increase
from trimtab.locate.patching import Normalised, normalised, patching, total_effect
from trimtab.locate.patchscopes import patchscope, patchscope_scores
from trimtab.locate.path_patching import path_patching
from trimtab.locate.probes import ProbeResult, fit_probe, probe_accuracy
from trimtab.locate.probing import probe, selectivity
from trimtab.locate.query_neurons import query_neurons
from trimtab.locate.roles import head_roles, role_graph
from trimtab.locate.shift import shift
from trimtab.locate.text_noise import text_noise
from trimtab.locate.tracing import causal_tracing, tracing_effect, tracing_maps
from trimtab.locate.tuned_lens import train_tuned_lens
from trimtab.locate.watching import watch, watch_stream

__all__ = [
    "Attribution",
    "Circuits",
    "Normalised",
    "ProbeResult",
    "ablation",
    "activation_magnitude",
    "activation_probability",
    "atp_star",
    "attention_entropy",
    "attention_mass",
    "attribution_maps",
    "attribution_patching",
    "audit_scores",
    "causal_tracing",
    "comparative_neurons",
    "composition",
    "copying_score",
    "direct_logit_attribution",
    "dola",
    "duplicate_token_score",
    "first_layer",
    "fisher",
    "fit_monitor",
    "fit_probe",
    "gradient_input",
    "head_roles",
    "induction_score",
    "integrated_gradients",
    "knowledge_neurons",
    "language_entropy",
    "language_neurons",
    "layer_contrast",
    "log_probability_increase",
    "logit_attribution",
    "logit_lens",
    "logit_lens_scores",
    "magnitude_contrast",
    "massive_activations",
    "method",
    "methods",
    "normalised",
    "ov_circuit",
    "ov_copying_score",
    "patching",
    "patchscope",
    "patchscope_scores",
    "path_patching",
    "previous_token_score",
    "probe",
    "probe_accuracy",
    "qk_circuit",
    "query_neurons",
    "role_graph",
    "saliency",
    "score_monitor",
    "selectivity",
    "shared_neurons",
    "shift",
    "sink_mass",
    "taylor",
    "text_noise",
    "token_scores",
    "total_effect",
    "tracing_effect",
    "tracing_maps",
    "train_tuned_lens",
    "watch",
    "watch_stream",
]
