"""Erasure methods: one file each, one line here each."""

PLUGINS = {
    "none": "methods.none:NoErasure",
    "never-learned": "methods.never_learned:NeverLearned",
    "external": "methods.external:External",
    "esd": "methods.esd:ESD",
    "ac": "methods.ac:AC",
    "uce": "methods.uce:UCE",
    "fmn": "methods.fmn:FMN",
    "p-esd": "methods.p_esd:PESD",
    "p-ac": "methods.p_ac:PAC",
    "pre-prune": "methods.pre_prune:PrePrune",
    "post-prune": "methods.post_prune:PostPrune",
    "np-esd": "methods.np_esd:NPESD",
    "concept-prune": "methods.concept_prune:ConceptPrune",
    "negative-prompt": "methods.negative_prompt:NegativePrompt",
    "sld": "methods.sld:SLD",
    "safety-checker": "methods.safety_checker:SafetyChecker",
}
