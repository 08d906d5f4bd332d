# Adds two binary numbers: takes digits off the second, and adds each to the first, whose finished digits are a and b.
symbols: 01+ab_
input: [01]+\+[01]+
start: right
halt: done

# To the end, without a carry and with one.
right   01+ab -> right R
right   _     -> take L
right_c 01+ab -> right_c R
right_c _     -> take_c L

# The last digit of the second number and the carry make 0, 1 or 2.
take    0 -> find_0 _ L
take    1 -> find_1 _ L
take    + -> clean _ L
take_c  0 -> find_1 _ L
take_c  1 -> find_2 _ L
take_c  + -> clean_c _ L

# To the first number's next digit, past those that are finished.
find_0  01 -> find_0 L
find_0  +  -> add_0 L
find_1  01 -> find_1 L
find_1  +  -> add_1 L
find_2  01 -> find_2 L
find_2  +  -> add_2 L
add_0   ab -> add_0 L
add_0   0_ -> right a R
add_0   1  -> right b R
add_1   ab -> add_1 L
add_1   0_ -> right b R
add_1   1  -> right_c a R
add_2   ab -> add_2 L
add_2   0_ -> right_c a R
add_2   1  -> right_c b R

# Finished digits become digits again, and a carry goes on into the first number.
clean   a  -> clean 0 L
clean   b  -> clean 1 L
clean   01 -> clean L
clean   _  -> done S
clean_c a  -> clean_c 0 L
clean_c b  -> clean_c 1 L
clean_c 0  -> clean 1 L
clean_c 1  -> clean_c 0 L
clean_c _  -> done 1 S
