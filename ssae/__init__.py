"""Self-supervised training with autoencoders for visual anomaly detection.

The package of the book, flat: a reader finds a thing by the name the field gives it. Importing ``ssae``
alone imports nothing heavy; take what you need from its modules, for instance ``from ssae import metrics``.
"""

__version__ = "0.1.0"
