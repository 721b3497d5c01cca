package caddymodule

import (
	"strings"
	"testing"
)

// keyText is an encryption_key; the same letter gives the same key.
func keyText(letter string) string { return strings.Repeat(letter, 42) + "A=" }

func TestEncryptionKeyErrorsSayWhatToWrite(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_KEY", "correct horse battery staple\n")
	t.Setenv("DEVICE_FLOW_TEST_EMPTY", "\n")
	const noKey = "it is no key of 32 bytes in base64 or hex: make one with 'openssl rand -base64 32'"
	for _, c := range []struct{ name, setting, want string }{
		{"no key", "encryption_key", "encryption_key takes at least one value, at Caddyfile:5"},
		{"two lines", "encryption_key a\n encryption_key b", "encryption_key is given twice; write all keys on one line, the one that seals first, at Caddyfile:6"},
		{"a block", "encryption_key a {\n b\n}", "there is no block here"},
		{"a pass phrase", "encryption_key hunter2hunter2hunter2", "session default: encryption_key number 1: " + noKey},
		{"a bad old key", "encryption_key " + keyText("a") + " hunter2", "session default: encryption_key number 2: " + noKey},
		{"off in the second place", "encryption_key " + keyText("a") + " off", "session default: encryption_key number 2: " + noKey},
		{"an empty key", `encryption_key ""`, "session default: encryption_key number 1: " + noKey},
		{"a pass phrase in a variable", "encryption_key {env.DEVICE_FLOW_TEST_KEY}", "session default: encryption_key {env.DEVICE_FLOW_TEST_KEY}: " + noKey},
		{"a line end in a variable", "encryption_key {env.DEVICE_FLOW_TEST_EMPTY}", "session default: encryption_key {env.DEVICE_FLOW_TEST_EMPTY}: " + noKey},
		{"no such file", "encryption_key {file.testdata/none}", "session default: encryption_key {file.testdata/none} has no value: " +
			"check that the file or variable exists, that Caddy may read it, and that it is not empty"},
		{"no such file of an old key", "encryption_key " + keyText("a") + " {file.testdata/none}", "session default: encryption_key {file.testdata/none} has no value: " +
			"check that the file or variable exists, that Caddy may read it, and that it is not empty"},
		{"a key around a placeholder", "encryption_key {x}hunter2{y}", "session default: encryption_key is written with a placeholder that has no value: " +
			"check that the file or variable exists, that Caddy may read it, and that it is not empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := adapt(t, site("device_flow {\n issuer https://l.example.com\n client_id a\n "+c.setting+"\n}"))
			if err == nil {
				err = provisioned(t, config)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "horse")) {
				t.Error("the error tells the secret")
			}
		})
	}
}

// What stands in the configuration names the place of the key; the key itself is
// in no field that the admin API could show.
func TestEncryptionKeysAreResolvedOutsideTheConfiguration(t *testing.T) {
	t.Setenv("DEVICE_FLOW_TEST_KEY", keyText("k")+"\n")
	config, err := adapt(t, site("device_flow {\n issuer https://l.example.com\n client_id a\n encryption_key off {env.DEVICE_FLOW_TEST_KEY} {file.testdata/caddyfile/key.txt}\n}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := provisioned(t, config); err != nil {
		t.Error(err)
	}
	c := &Client{EncryptionKey: []string{"off", "{env.DEVICE_FLOW_TEST_KEY}", "{file.testdata/caddyfile/key.txt}"}}
	keys, err := c.keys()
	if err != nil || len(keys) != 3 || !keys[0].IsZero() || keys[1].IsZero() || keys[2].IsZero() {
		t.Errorf("%v %v", keys, err)
	}
	if c.EncryptionKey[1] != "{env.DEVICE_FLOW_TEST_KEY}" || strings.Contains(config, keyText("k")) {
		t.Error("the key is in the configuration")
	}
}
