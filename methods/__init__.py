"""Erasure methods: one file each, one line here each."""

PLUGINS = {
    "none": "methods.none:NoErasure",
    "esd": "methods.esd:ESD",
    "p-esd": "methods.p_esd:PESD",
}
