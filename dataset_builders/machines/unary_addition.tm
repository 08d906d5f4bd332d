# Adds two unary numbers: joins them, and takes the last one away.
symbols: 1+_
input: 1+\+1+
start: first
halt: done

first  1 -> first R
first  + -> second 1 R
second 1 -> second R
second _ -> last L
last   1 -> done _ S
