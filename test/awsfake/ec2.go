package awsfake

import (
	"fmt"
	"net/http"
	"strings"
)

// Instance is an EC2 instance.
type Instance struct {
	ID, Account, Region string
	// State is its name, "running" if empty.
	State string
	// Says is what the answer calls it and its account, if that is not the truth.
	Says Says
}

// Says is what an answer states falsely.
type Says struct{ ID, Account string }

// Instances is EC2 with these instances: a caller sees those of its own account, one
// region at a time. Set it as Services["ec2"].
func Instances(all ...Instance) Service {
	return func(caller Key, region string, form map[string][]string) (string, *Failure) {
		get := func(name string) string { return strings.Join(form[name], ",") }
		if get("Action") != "DescribeInstances" || get("Version") != "2016-11-15" {
			return "", &Failure{http.StatusBadRequest, "InvalidAction", "The action " + escapeXML(get("Action")) + " is not valid for this web service."}
		}
		for _, i := range all {
			if i.ID != get("InstanceId.1") || i.Account != caller.Account || i.Region != region {
				continue
			}
			state := i.State
			if state == "" {
				state = "running"
			}
			if i.Says.ID != "" {
				i.ID = i.Says.ID
			}
			if i.Says.Account != "" {
				i.Account = i.Says.Account
			}
			return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?><DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>0</requestId>`+
				`<reservationSet><item><reservationId>r-1</reservationId><ownerId>%s</ownerId><groupSet/><instancesSet><item><instanceId>%s</instanceId>`+
				`<imageId>ami-1</imageId><instanceState><code>16</code><name>%s</name></instanceState></item></instancesSet></item></reservationSet></DescribeInstancesResponse>`,
				escapeXML(i.Account), escapeXML(i.ID), escapeXML(state)), nil
		}
		return "", &Failure{http.StatusBadRequest, "InvalidInstanceID.NotFound", "The instance ID does not exist"}
	}
}
