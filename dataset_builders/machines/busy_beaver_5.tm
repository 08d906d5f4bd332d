# The busy beaver of five states: 4,098 ones on an empty tape, after 47,176,870 steps.
symbols: 01
blank: 0
input: [01]+
start: A
halt: H

A 0 -> B 1 R
A 1 -> C 1 L
B 0 -> C 1 R
B 1 -> B 1 R
C 0 -> D 1 R
C 1 -> E 0 L
D 0 -> A 1 L
D 1 -> D 1 L
E 0 -> H 1 R
E 1 -> A 0 L
