# Copies a word behind the sign #, two symbols at a time; the place to come back to is a capital letter.
symbols: abAB#_
input: [ab]+#
start: next
halt: done

next     a   -> one_a R
next     b   -> one_b R
next     #   -> done S
one_a    a   -> carry_aa A R
one_a    b   -> carry_ab B R
one_a    #   -> last_a R
one_b    a   -> carry_ba A R
one_b    b   -> carry_bb B R
one_b    #   -> last_b R
carry_aa ab# -> carry_aa R
carry_aa _   -> put_a a R
carry_ab ab# -> carry_ab R
carry_ab _   -> put_b a R
carry_ba ab# -> carry_ba R
carry_ba _   -> put_a b R
carry_bb ab# -> carry_bb R
carry_bb _   -> put_b b R
put_a    _   -> back a L
put_b    _   -> back b L
back     ab# -> back L
back     A   -> next a R
back     B   -> next b R
last_a   ab  -> last_a R
last_a   _   -> done a S
last_b   ab  -> last_b R
last_b   _   -> done b S
