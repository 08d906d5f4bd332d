# Runs the cellular automaton of rule 110 behind the colon, one generation for each one before it.
symbols: 01:_
input: 1{1,9}:[01]+
start: tick
halt: done

tick 1   -> go _ R
tick :   -> done _ S
go   1   -> go R
go   :   -> s00 R

# The state holds two old cells; the new value of the second is written one cell to the right.
s00  0  -> s00 0 R
s00  1  -> s01 1 R
s00  _  -> back 0 L
s01  0  -> s10 1 R
s01  1  -> s11 1 R
s01  _  -> back 1 L
s10  0  -> s00 0 R
s10  1  -> s01 1 R
s10  _  -> back 0 L
s11  0  -> s10 1 R
s11  1  -> s11 0 R
s11  _  -> back 1 L
back 01: -> back L
back _   -> tick R
