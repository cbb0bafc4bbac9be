//go:build !race

package ssmmptest

import "time"

// clusterHour is how long TestClusterHour takes in virtual time.
const clusterHour = time.Hour
