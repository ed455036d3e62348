"""Pure maths on tensors: no module, no logger, no reduction over the batch."""
