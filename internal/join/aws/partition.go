package aws

import (
	"slices"
	"strings"

	"teleport/internal/fault"
)

// Partition is one of AWS's separate worlds: an account of one means nothing in
// another.
type Partition struct {
	// ID as ARNs have it, e.g. "aws-cn".
	ID string
	// Suffix is the domain of its services.
	Suffix string
	// areas are the first parts of the names of its regions.
	areas []string
	// fips has the regions with FIPS hosts of their own; allFIPS says that the usual
	// hosts are.
	fips    []string
	allFIPS bool
}

// partitions is the table that every host name comes from.
func partitions() []Partition {
	return []Partition{
		{
			ID: "aws", Suffix: "amazonaws.com",
			areas: []string{"us", "eu", "ap", "sa", "ca", "me", "af", "il", "mx"},
			fips:  []string{"us-east-1", "us-east-2", "us-west-1", "us-west-2"},
		},
		{ID: "aws-cn", Suffix: "amazonaws.com.cn", areas: []string{"cn"}},
		{ID: "aws-us-gov", Suffix: "amazonaws.com", areas: []string{"us-gov"}, allFIPS: true},
		{ID: "aws-iso", Suffix: "c2s.ic.gov", areas: []string{"us-iso"}},
		{ID: "aws-iso-b", Suffix: "sc2s.sgov.gov", areas: []string{"us-isob"}},
		{ID: "aws-iso-e", Suffix: "cloud.adc-e.uk", areas: []string{"eu-isoe"}},
		{ID: "aws-iso-f", Suffix: "csp.hci.ic.gov", areas: []string{"us-isof"}},
		{ID: "aws-eusc", Suffix: "amazonaws.eu", areas: []string{"eusc-de"}},
	}
}

// directions are the second parts of the names of regions.
func directions() []string {
	return []string{"north", "south", "east", "west", "central", "northeast", "northwest", "southeast", "southwest"}
}

// PartitionOf returns the partition of a region: an area of the table, a compass
// point and a digit, e.g. "eu-central-1". So a region that AWS opens tomorrow is
// known, and nothing that could bend a host name is.
func PartitionOf(region string) (Partition, bool) {
	last := len(region) - 2
	if last < 1 || region[last] != '-' || region[last+1] < '1' || region[last+1] > '9' {
		return Partition{}, false
	}
	area, direction, ok := cutLast(region[:last], "-")
	if !ok || !slices.Contains(directions(), direction) {
		return Partition{}, false
	}
	for _, p := range partitions() {
		if slices.Contains(p.areas, area) {
			return p, true
		}
	}
	return Partition{}, false
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Host returns the host of a service ("sts", "ec2") in a region. It is made of the
// table alone. An error says which part is not known.
func Host(service, region string, fips bool) (string, error) {
	p, ok := PartitionOf(region)
	if !ok {
		return "", fault.Invalid("%q is not an AWS region: expected one like us-east-1; set AWS_REGION", short(region))
	}
	if fips && !p.allFIPS {
		if !slices.Contains(p.fips, region) {
			return "", fault.Invalid("AWS has no FIPS host of %s in %s: unset AWS_USE_FIPS_ENDPOINT, or use one of %s and the us-gov regions",
				service, region, strings.Join(partitions()[0].fips, ", "))
		}
		service += "-fips"
	}
	return service + "." + region + "." + p.Suffix, nil
}

// short cuts what a stranger sent to a length that fits a message.
func short(s string) string { return s[:min(len(s), 64)] }
