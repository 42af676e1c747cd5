"""What search_net.py does, as a room that no other one imports.

plan.py checks all of it before anything is written, run.py runs the phases in order. search_hook.py and
scorer.py: a search at the end of a supernet's training, and what it scores with. training.py: one
training, with pre-training; retraining.py: the table. configs.py: derived configs, found.yaml.
"""
