package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
)

// event is a line of standard output, as ../provider/server.mjs has them.
type event struct {
	Event   string `json:"event"` // device, token or revocation
	Grant   string `json:"grant,omitempty"`
	Status  int    `json:"status"`
	Error   string `json:"error"`
	Rotated bool   `json:"rotated"`
}

// told tells of each request that a device client makes.
func told(out io.Writer, devicePath string, next http.Handler) http.Handler {
	var mu sync.Mutex
	names := map[string]string{devicePath: "device", "/oauth/token": "token", "/revoke": "revocation"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, tell := names[r.URL.Path]
		if !tell {
			next.ServeHTTP(w, r)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
		_ = r.ParseForm() // the library finds it parsed; what is wrong with it is the library's to say
		copied := &copying{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(copied, r)

		var answer struct {
			Error        string `json:"error"`
			RefreshToken string `json:"refresh_token"`
		}
		_ = json.Unmarshal(copied.body.Bytes(), &answer) // an answer that is no JSON names no error
		e := event{Event: name, Status: copied.status, Error: answer.Error}
		if name == "token" {
			e.Grant = r.PostForm.Get("grant_type")
			if strings.HasSuffix(e.Grant, ":device_code") {
				e.Grant = "device_code"
			}
			e.Rotated = e.Grant == "refresh_token" && answer.RefreshToken != "" && answer.RefreshToken != r.PostForm.Get("refresh_token")
		}
		line, err := json.Marshal(e)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = out.Write(append(line, '\n'))
	})
}

// copying keeps what is answered.
type copying struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (c *copying) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *copying) Write(b []byte) (int, error) {
	c.body.Write(b)
	return c.ResponseWriter.Write(b)
}
