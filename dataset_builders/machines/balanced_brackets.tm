# Whether brackets are balanced: crosses out the first closing bracket and the nearest open one before it.
symbols: ()x_
input: balanced ()
start: seek
halt: Y N
answer: state

seek  (x -> seek R
seek  )  -> match x L
seek  _  -> check L
match x  -> match L
match (  -> seek x R
match _  -> N S
check x  -> check L
check (  -> N S
check _  -> Y S
