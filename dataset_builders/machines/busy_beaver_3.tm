# The busy beaver of three states: five ones on an empty tape, after 21 steps.
symbols: 01
blank: 0
input: [01]+
start: A
halt: H

A 0 -> B 1 R
A 1 -> H 1 R
B 0 -> B 1 L
B 1 -> C 0 R
C 0 -> C 1 L
C 1 -> A 1 L
