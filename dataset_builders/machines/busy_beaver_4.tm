# The busy beaver of four states: 13 ones on an empty tape, after 107 steps.
symbols: 01
blank: 0
input: [01]+
start: A
halt: H

A 0 -> B 1 R
A 1 -> B 1 L
B 0 -> A 1 L
B 1 -> C 0 L
C 0 -> H 1 R
C 1 -> D 1 L
D 0 -> D 1 R
D 1 -> A 0 R
