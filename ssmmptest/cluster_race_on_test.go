//go:build race

package ssmmptest

import "time"

// clusterHour is how long TestClusterHour takes in virtual time: the race
// detector makes it ten times as slow.
const clusterHour = 10 * time.Minute
