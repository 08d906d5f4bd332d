# Adds one to a binary number.
symbols: 01_
input: [01]+
start: right
halt: done

right 01 -> right R
right _  -> carry L
carry 1  -> carry 0 L
carry 0_ -> done 1 S
