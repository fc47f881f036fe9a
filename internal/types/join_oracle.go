package types

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// maxOracleInstances bounds spec.oracle.allow[].instances.
const maxOracleInstances = 100

func oracleMethod() JoinMethod {
	m := ruleMethod(JoinMethodOracle, "oracle", "spec.oracle.allow",
		func(s *typesv1.TokenSpec) []*typesv1.OracleRule { return s.GetOracle().GetAllow() },
		RuleField{Name: "tenancy", Trust: true, Check: checkOCID("tenancy")},
		RuleField{Name: "parent_compartments", Check: checkOCID("compartment", "tenancy")},
		RuleField{Name: "regions", Match: matchOracleRegion, Check: checkOracleRegion},
		RuleField{Name: "instances", Check: checkOCID("instance")},
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		for _, rule := range m.Rules(s) {
			for _, f := range rule.Fields() {
				if f.Name == "instances" && len(f.Want) > maxOracleInstances {
					add(rule.Path+".instances", "%d instances, the most is %d: name the compartment instead", len(f.Want), maxOracleInstances)
				}
			}
		}
	}
	return m
}

// OCID is an identifier of Oracle Cloud:
// ocid1.<type>.<realm>.[region][.future use].<unique id>.
type OCID struct {
	Type, Realm string
	// Region is as it stands there, a long or a short name; empty for what is in none.
	Region string
}

// maxOCID is the longest identifier that Oracle's documents allow.
const maxOCID = 255

// ParseOCID reads an identifier, strictly.
func ParseOCID(s string) (OCID, error) {
	parts := strings.Split(s, ".")
	if len(s) > maxOCID || len(parts) < 5 || len(parts) > 6 || parts[0] != "ocid1" {
		return OCID{}, fault.Invalid("%.64q is not an OCID: expected one like ocid1.TYPE.REALM.[REGION].ID", s)
	}
	for i, p := range parts {
		optional := i == 3 || i == 4 && len(parts) == 6
		if p == "" && !optional || strings.ContainsFunc(p, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return OCID{}, fault.Invalid("%.64q is not an OCID: its part %d is not of lower-case letters, digits and hyphens", s, i+1)
		}
	}
	return OCID{Type: parts[1], Realm: parts[2], Region: parts[3]}, nil
}

// checkOCID returns the check of a rule's identifier, which must be of one of the types.
func checkOCID(kinds ...string) func(string) error {
	return func(s string) error {
		id, err := ParseOCID(s)
		if err != nil {
			return err
		}
		for _, k := range kinds {
			if id.Type == k {
				return nil
			}
		}
		return fault.Invalid("%.64q is the OCID of a %s: expected that of a %s", s, id.Type, strings.Join(kinds, " or a "))
	}
}

// OracleRegion is a region of Oracle Cloud.
type OracleRegion struct {
	// Name is the long one, such as "eu-frankfurt-1"; Short the airport's, such as "fra".
	Name, Short string
	// Realm is "oc1" for the public cloud; Domain is that of its services.
	Realm, Domain string
}

// FindOracleRegion returns the region of a long or a short name.
func FindOracleRegion(name string) (OracleRegion, bool) {
	for _, realm := range oracleRealms() {
		for _, pair := range strings.Split(realm.regions, ", ") {
			long, short, _ := strings.Cut(pair, " ")
			if name != "" && (name == long || name == short) {
				return OracleRegion{Name: long, Short: short, Realm: realm.name, Domain: realm.domain}, true
			}
		}
	}
	return OracleRegion{}, false
}

// matchOracleRegion takes long and short names for the same.
func matchOracleRegion(want, got string) bool {
	w, ok := FindOracleRegion(want)
	if !ok {
		return false
	}
	g, ok := FindOracleRegion(got)
	return ok && w == g
}

func checkOracleRegion(s string) error {
	if _, ok := FindOracleRegion(s); !ok {
		return fault.Invalid("%.64q is not a region of Oracle Cloud that this version knows: use a name such as eu-frankfurt-1 or fra", s)
	}
	return nil
}

type oracleRealm struct {
	name, domain string
	// regions are pairs of a long and a short name.
	regions string
}

// oracleRealms is the table of regions. No address of Oracle is made of anything else.
func oracleRealms() []oracleRealm {
	return []oracleRealm{
		{
			"oc1", "oraclecloud.com",
			"af-casablanca-1 lej, af-johannesburg-1 jnb, ap-batam-1 hsg, ap-chuncheon-1 yny, ap-delhi-1 onm, " +
				"ap-hyderabad-1 hyd, ap-kulai-2 jbp, ap-melbourne-1 mel, ap-mumbai-1 bom, ap-osaka-1 kix, ap-seoul-1 icn, " +
				"ap-singapore-1 sin, ap-singapore-2 xsp, ap-sydney-1 syd, ap-tokyo-1 nrt, ca-montreal-1 yul, " +
				"ca-toronto-1 yyz, eu-amsterdam-1 ams, eu-frankfurt-1 fra, eu-madrid-1 mad, eu-madrid-3 orf, " +
				"eu-marseille-1 mrs, eu-milan-1 lin, eu-paris-1 cdg, eu-stockholm-1 arn, eu-turin-1 nrq, eu-zurich-1 zrh, " +
				"il-jerusalem-1 mtz, me-abudhabi-1 auh, me-dubai-1 dxb, me-jeddah-1 jed, me-riyadh-1 ruh, " +
				"mx-monterrey-1 mty, mx-queretaro-1 qro, sa-bogota-1 bog, sa-santiago-1 scl, sa-saopaulo-1 gru, " +
				"sa-valparaiso-1 vap, sa-vinhedo-1 vcp, uk-cardiff-1 cwl, uk-london-1 lhr, us-ashburn-1 iad, " +
				"us-chicago-1 ord, us-phoenix-1 phx, us-saltlake-2 aga, us-sanjose-1 sjc",
		},
		{"oc2", "oraclegovcloud.com", "us-langley-1 lfi, us-luke-1 luf"},
		{"oc3", "oraclegovcloud.com", "us-gov-ashburn-1 ric, us-gov-chicago-1 pia, us-gov-phoenix-1 tus"},
		{"oc4", "oraclegovcloud.uk", "uk-gov-cardiff-1 brs, uk-gov-london-1 ltn"},
		{"oc8", "oraclecloud8.com", "ap-chiyoda-1 nja, ap-ibaraki-1 ukb"},
		{"oc9", "oraclecloud9.com", "me-dcc-muscat-1 mct, me-ibri-1 ibr"},
		{"oc10", "oraclecloud10.com", "ap-dcc-canberra-1 wga"},
		{
			"oc14", "oraclecloud14.com",
			"eu-dcc-dublin-1 ork, eu-dcc-dublin-2 snn, eu-dcc-milan-1 bgy, eu-dcc-milan-2 mxp, eu-dcc-rating-1 dus, " +
				"eu-dcc-rating-2 dtm",
		},
		{"oc15", "oraclecloud15.com", "ap-dcc-gazipur-1 dac"},
		{"oc19", "oraclecloud.eu", "eu-frankfurt-2 str, eu-madrid-2 vll"},
		{"oc20", "oraclecloud20.com", "eu-jovanovac-1 beg"},
		{"oc21", "oraclecloud21.com", "me-alrayyan-1 vve, me-dcc-doha-1 doh"},
		{"oc23", "oraclecloud23.com", "us-somerset-1 ebb, us-thames-1 ebl"},
		{"oc24", "oraclecloud24.com", "eu-crissier-1 avf, eu-dcc-zurich-1 avz"},
		{"oc26", "oraclecloud26.com", "me-abudhabi-3 ahu, me-alain-1 rba"},
		{"oc29", "oraclecloud29.com", "me-abudhabi-2 rkt, me-abudhabi-4 shj"},
		{"oc35", "oraclecloud35.com", "ap-chuncheon-2 bno, ap-seoul-2 dtz, ap-suwon-1 dln"},
		{"oc42", "oraclecloud42.com", "us-ashburn-2 yxj, us-newark-1 pgc"},
		{"oc51", "oraclecloud51.com", "eu-budapest-1 jsk"},
		{"oc52", "oraclecloud52.com", "sa-riodejaneiro-1 hnw"},
	}
}
