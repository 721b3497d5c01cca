// npm better-auth with its oauth-provider plugin, as a fixture beside server.mjs:
// an authorization server that enforces its polling interval, with access tokens
// that live for seconds and refresh tokens that rotate. Everything is in memory
// and on loopback; the process ends with its standard input, so that it cannot
// outlive the test that started it.
//
// Standard output is what server.mjs prints: the issuer's URL, then one JSON
// object a line for each request to an endpoint that a device client uses. No
// token, code or secret is ever printed.
//
// Settings by environment, in seconds: ACCESS_TOKEN_TTL (4); DEVICE_CODE_TTL (300)
// and INTERVAL (1) as announced, DEVICE_CODE_DIES and ENFORCED_INTERVAL (the same)
// as they are.
//
// The operator's part: POST /operator with user_code and decision (allow or deny).

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';

console.info = console.error;
console.log = console.error;
const { betterAuth } = await import('better-auth');
const { memoryAdapter } = await import('better-auth/adapters/memory');
const { jwt } = await import('better-auth/plugins');
const { oauthProvider, oauthDeviceAuthorization, oauthProviderAuthServerMetadata } = await import('@better-auth/oauth-provider');
const { getAuthTables } = await import('better-auth/db');

const seconds = (name, fallback) => {
  const value = Number(process.env[name] ?? fallback);
  if (!Number.isInteger(value) || value < 1) {
    throw new Error(`${name}: give a whole number of seconds, not ${process.env[name]}`);
  }
  return value;
};
const accessTokenTTL = seconds('ACCESS_TOKEN_TTL', 4);
const deviceCodeTTL = seconds('DEVICE_CODE_TTL', 300);
const deviceCodeDies = seconds('DEVICE_CODE_DIES', deviceCodeTTL);
const interval = seconds('INTERVAL', 1);
const enforced = seconds('ENFORCED_INTERVAL', interval);

const DEVICE_CODE = 'urn:ietf:params:oauth:grant-type:device_code';
const SCOPES = ['openid', 'offline_access', 'profile', 'email'];

const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const origin = `http://127.0.0.1:${server.address().port}`;
const issuer = `${origin}/api/auth`;

const options = {
  baseURL: issuer,
  secret: randomBytes(32).toString('hex'),
  emailAndPassword: { enabled: true },
  rateLimit: { enabled: false },
  logger: { level: 'warn', log: (level, message) => console.error(level, message) },
  telemetry: { enabled: false },
  plugins: [
    jwt({ disableSettingJwtHeader: true }),
    oauthProvider({
      loginPage: '/sign-in',
      consentPage: '/consent',
      scopes: SCOPES,
      accessTokenExpiresIn: accessTokenTTL,
      grantTypes: ['authorization_code', 'refresh_token'],
      silenceWarnings: { oauthAuthServerConfig: true, openidConfig: true },
    }),
    oauthDeviceAuthorization({
      expiresIn: `${deviceCodeDies}s`,
      interval: `${enforced}s`,
      verificationUri: `${origin}/operator`,
    }),
  ],
};
const db = Object.fromEntries(Object.values(getAuthTables(options)).map((table) => [table.modelName, []]));
const auth = betterAuth({ ...options, database: memoryAdapter(db) });

const { adapter } = await auth.$context;
await adapter.create({
  model: 'oauthClient',
  data: {
    clientId: 'device',
    name: 'Legacy device',
    public: true,
    tokenEndpointAuthMethod: 'none',
    grantTypes: [DEVICE_CODE, 'refresh_token'],
    responseTypes: [],
    redirectUris: [],
    scopes: SCOPES,
    createdAt: new Date(),
    updatedAt: new Date(),
  },
});

// The one person there is.
const signedUp = await auth.api.signUpEmail({
  body: { name: 'Operator', email: 'operator@example.com', password: randomBytes(12).toString('hex') },
  asResponse: true,
});
const person = new Headers({
  cookie: signedUp.headers.getSetCookie().map((cookie) => cookie.split(';')[0]).join('; '),
  origin,
});

async function operator(form) {
  const userCode = form.get('user_code');
  // Looking at a code ties it to who is signed in.
  await auth.api.deviceVerify({ query: { user_code: userCode }, headers: person });
  const decide = form.get('decision') === 'allow' ? auth.api.deviceApprove : auth.api.deviceDeny;
  await decide({ body: { userCode }, headers: person });
  return new Response(null, { status: 204 });
}

const metadata = oauthProviderAuthServerMetadata(auth);
const names = { '/api/auth/device/code': 'device', '/api/auth/oauth2/token': 'token', '/api/auth/oauth2/revoke': 'revocation' };

async function answer(request, path, body) {
  if (path === '/operator') {
    return operator(new URLSearchParams(body));
  }
  if (path === '/.well-known/oauth-authorization-server/api/auth') {
    return metadata(request);
  }
  const response = await auth.handler(request);
  if (!names[path]) {
    return response;
  }
  const content = await response.text();
  let answered = {};
  try {
    answered = JSON.parse(content) ?? {};
  } catch {
    // an answer that is no JSON names no error
  }
  const params = new URLSearchParams(body);
  const grant = params.get('grant_type') ?? undefined;
  const issued = answered.refresh_token;
  process.stdout.write(`${JSON.stringify({
    event: names[path],
    grant: grant === DEVICE_CODE ? 'device_code' : grant,
    status: response.status,
    error: answered.error ?? '',
    rotated: grant === 'refresh_token' && Boolean(issued) && issued !== params.get('refresh_token'),
  })}\n`);
  if (names[path] === 'device' && response.status === 200) {
    // What is announced need not be what is enforced.
    return Response.json({ ...answered, interval, expires_in: deviceCodeTTL });
  }
  return new Response(content, { status: response.status, headers: response.headers });
}

server.on('request', async (req, res) => {
  try {
    const body = await text(req);
    const request = new Request(origin + req.url, {
      method: req.method,
      headers: new Headers(Object.entries(req.headers).filter(([, value]) => typeof value === 'string')),
      body: req.method === 'GET' || req.method === 'HEAD' ? undefined : body,
    });
    const response = await answer(request, new URL(request.url).pathname, body);
    const headers = Object.fromEntries(response.headers);
    delete headers['content-length'];
    res.writeHead(response.status, headers);
    res.end(Buffer.from(await response.arrayBuffer()));
  } catch (error) {
    console.error(error);
    res.writeHead(500).end();
  }
});
process.stdout.write(`${issuer}\n`);

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
process.stdin.on('error', () => process.exit(0));
