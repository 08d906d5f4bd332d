# Whether a word reads the same from both ends: takes the first symbol away, and looks for it at the end.
symbols: ab_
input: palindrome [ab]
start: first
halt: Y N
answer: state

first  a  -> seek_a _ R
first  b  -> seek_b _ R
first  _  -> Y S
seek_a ab -> seek_a R
seek_a _  -> last_a L
last_a a  -> back _ L
last_a b  -> N S
last_a _  -> Y S
seek_b ab -> seek_b R
seek_b _  -> last_b L
last_b b  -> back _ L
last_b a  -> N S
last_b _  -> Y S
back   ab -> back L
back   _  -> first R
