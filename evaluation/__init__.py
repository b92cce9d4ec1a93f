"""How well pictures obey their controls: one picture's score, and a model's over many pictures."""
