"""Which attention hides the best tickets: what `mixing.py` measures.

study: settings, and the measurements one by one · variants: which attentions · networks: attentions of equal size ·
errors, losses, spikes and matrices: one kind of measurement each · jobs: doing and storing them · tables: what comes
out · verdicts: differences to MHA, and what they are worth.

Every variant is set beside multi-head attention (MHA) of as many parameters, or of as much computing: the width of
its heads is solved for. A measurement is a `study.Job`, done from its own seed and no other: so jobs can be stored
one by one, done on several processes, and what is compared is paired by seed (the same target, batches and dice).

A ticket's tensors that mix heads or features start as mixing_init says, by default at their paper's constant with a
random part added to it, which alone is masked; dense training starts as the papers do. The paper's lambda of
differential attention stays as it is drawn in a ticket. M_c of MHLA is clipped to be positive in dense training.
"""
