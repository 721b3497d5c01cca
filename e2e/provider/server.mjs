// The certified npm oidc-provider as a fixture: device flow, access tokens that
// live for seconds, refresh tokens that rotate and kill the grant on reuse, its
// own development pages for login and consent. Everything is in memory and on
// loopback; the process ends with its standard input, so that it cannot outlive
// the test that started it.
//
// Standard output: first the issuer's URL, then one JSON object a line for each
// request to an endpoint that a device client uses:
//
//   {"event":"device","status":200,"error":""}
//   {"event":"token","grant":"device_code","status":400,"error":"authorization_pending","rotated":false}
//   {"event":"token","grant":"refresh_token","status":200,"error":"","rotated":true}
//   {"event":"revocation","status":200,"error":""}
//   {"event":"grant.revoked"}
//
// No token, code or secret is ever printed.
//
// Settings by environment: in seconds, ACCESS_TOKEN_TTL (4) and DEVICE_CODE_TTL
// (600); for a second client, "service", CLIENT_AUTH (private_key_jwt or
// self_signed_tls_client_auth) and CLIENT_JWKS, its public keys; for clients with
// a certificate, TLS_CERT and TLS_KEY, the files of a second listener; for resource
// indicators (RFC 8707), RESOURCES, the APIs with spaces between them: their access
// tokens are JWTs for one of them each, with the scope "read".

import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTLSServer } from 'node:https';
import { once } from 'node:events';

// The library's advice for production goes to console.info, which is standard
// output. The first line there is the URL.
console.info = console.error;
const { Provider, errors } = await import('oidc-provider');

const seconds = (name, fallback) => {
  const value = Number(process.env[name] ?? fallback);
  if (!Number.isInteger(value) || value < 1) {
    throw new Error(`${name}: give a whole number of seconds, not ${process.env[name]}`);
  }
  return value;
};
const accessTokenTTL = seconds('ACCESS_TOKEN_TTL', 4);
const deviceCodeTTL = seconds('DEVICE_CODE_TTL', 600);

const DEVICE_CODE = 'urn:ietf:params:oauth:grant-type:device_code';
const HOUR = 60 * 60;

// The issuer must be known before the provider is made, and the port is only
// known once the server listens.
const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;

// Where clients show a certificate (RFC 8705 §5). It is compared with the one in
// the client's keys, so that no authority has to vouch for it.
let tlsServer;
let aliases;
if (process.env.TLS_CERT) {
  tlsServer = createTLSServer({
    cert: readFileSync(process.env.TLS_CERT),
    key: readFileSync(process.env.TLS_KEY),
    requestCert: true,
    rejectUnauthorized: false,
  });
  tlsServer.listen(0, '127.0.0.1');
  await once(tlsServer, 'listening');
  const at = `https://127.0.0.1:${tlsServer.address().port}`;
  aliases = {
    device_authorization_endpoint: `${at}/device/auth`,
    token_endpoint: `${at}/token`,
    revocation_endpoint: `${at}/token/revocation`,
  };
}

const resources = (process.env.RESOURCES ?? '').split(' ').filter(Boolean);

const service = process.env.CLIENT_AUTH && {
  client_id: 'service',
  client_name: 'Legacy service',
  token_endpoint_auth_method: process.env.CLIENT_AUTH,
  jwks: JSON.parse(process.env.CLIENT_JWKS),
  grant_types: [DEVICE_CODE, 'refresh_token'],
  response_types: [],
  redirect_uris: [],
};

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: 'device',
      client_name: 'Legacy device',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: [DEVICE_CODE, 'refresh_token'],
      response_types: [],
      redirect_uris: [],
    },
    ...(service ? [service] : []),
  ],
  ...(aliases ? { discovery: { mtls_endpoint_aliases: aliases } } : {}),
  clientAuthMethods: ['none', 'private_key_jwt', 'self_signed_tls_client_auth'],
  enabledJWA: { clientAuthSigningAlgValues: ['ES256', 'RS256', 'EdDSA', 'Ed25519'] },
  scopes: ['openid', 'offline_access', 'profile', 'email'],
  claims: { openid: ['sub'], profile: ['name'], email: ['email', 'email_verified'] },
  // Whoever signs in exists.
  findAccount: (_ctx, id) => ({
    accountId: id,
    claims: () => ({
      sub: id, name: `Operator ${id}`, email: `${id}@example.com`, email_verified: true,
    }),
  }),
  features: {
    deviceFlow: { enabled: true },
    devInteractions: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true },
    // The rest of it stays the library's default: a token request that names two
    // resources, or none where two were granted, is refused, and what it brought,
    // code or refresh token, is used up all the same.
    resourceIndicators: {
      enabled: resources.length > 0,
      getResourceServerInfo: (_ctx, resource) => {
        if (!resources.includes(resource)) {
          throw new errors.InvalidTarget();
        }
        return {
          audience: resource, scope: 'read', accessTokenFormat: 'jwt', accessTokenTTL,
        };
      },
    },
    mTLS: {
      enabled: true,
      selfSignedTlsClientAuth: true,
      getCertificate: (ctx) => ctx.socket.getPeerX509Certificate?.(),
    },
  },
  rotateRefreshToken: () => true,
  ttl: {
    AccessToken: accessTokenTTL,
    DeviceCode: deviceCodeTTL,
    IdToken: HOUR,
    RefreshToken: HOUR,
    Grant: HOUR,
    Session: HOUR,
    Interaction: HOUR,
  },
  // Otherwise expired tokens go on being accepted for 15 s, and no test would
  // notice a token that was not renewed.
  clockTolerance: 0,
  cookies: { keys: [randomBytes(32).toString('hex')] },
});

const log = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

provider.use(async (ctx, next) => {
  await next();
  // Only a request that reached one of the provider's routes has ctx.oidc.
  const route = ctx.oidc?.route;
  const error = ctx.body?.error ?? '';
  if (route === 'device_authorization') {
    log({ event: 'device', status: ctx.status, error });
  } else if (route === 'revocation') {
    log({ event: 'revocation', status: ctx.status, error });
  } else if (route === 'token') {
    const params = ctx.oidc.params ?? {};
    const grant = params.grant_type === DEVICE_CODE ? 'device_code' : params.grant_type ?? '';
    const issued = ctx.body?.refresh_token;
    log({
      event: 'token',
      grant,
      status: ctx.status,
      error,
      rotated: grant === 'refresh_token' && Boolean(issued) && issued !== params.refresh_token,
    });
  }
});

// A refresh token that is used twice has this happen.
provider.on('grant.revoked', () => log({ event: 'grant.revoked' }));

server.on('request', provider.callback());
tlsServer?.on('request', provider.callback());
process.stdout.write(`${issuer}\n`);

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
process.stdin.on('error', () => process.exit(0));
