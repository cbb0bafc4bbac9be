//go:build !race

package ssmmp

const poison = false
