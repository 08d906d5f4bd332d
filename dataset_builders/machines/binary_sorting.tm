# Sorts a binary word: the first one changes places with the last zero, until no zero is behind it.
symbols: 01x_
input: [01]+
start: one
halt: done

one  0  -> one R
one  1  -> end x R
one  _  -> done S
end  01 -> end R
end  _  -> zero L
zero 1  -> zero L
zero 0  -> put 1 L
zero x  -> done 1 S
put  01 -> put L
put  x  -> one 0 R
