"""search_net.py's course: checks, supernets, searches, found.yaml, retraining. Nothing imports it.

checks.py: what is asked, checked before anything is written. run.py: the phases in order.
search_hook.py, scorer.py: a search at the end of a supernet's training, and what it scores with.
pretraining.py, retraining.py. configs.py: derived configs, found.yaml.
"""
