/* What a web page can send to another origin, each way under its name. An attack resolves to what the page could read
   of the answer, or to nothing. `url` is at the proxy; `helper` is the attacker's own server. */
'use strict';

const text = (url, init) => fetch(url, init).then(r => r.text());
const blind = (url, init) => text(url, { mode: 'no-cors', ...init }); // of another origin, the answer reads as ''
const post = (body, type) => ({ method: 'POST', body, headers: type ? { 'Content-Type': type } : {} });
const slug = url => new URL(url).pathname.split('/').pop().split('.')[0];

/* An element that loads something, until it has, or has failed. */
function load(name, attributes, after = () => '') {
	return new Promise(done => {
		const e = document.createElement(name);
		e.onload = e.onloadedmetadata = e.onerror = () => done(after(e));
		for (const a in attributes) { e.setAttribute(a, attributes[a]); }
		document.body.append(e);
	});
}

/* An element that does not say what becomes of it. */
function head(name, attributes, source = '') {
	const e = document.createElement(name);
	for (const a in attributes) { e.setAttribute(a, attributes[a]); }
	e.textContent = source;
	document.head.append(e);
	return '';
}

function frame(attributes, begin = () => {}) {
	return new Promise(done => {
		const e = document.createElement('iframe');
		let begun = false;
		e.name = 'frame' + Math.random();
		for (const a in attributes) { e.setAttribute(a, attributes[a]); }
		e.onload = () => {
			if (!begun && !attributes.src && !attributes.srcdoc) { begun = true; begin(e.name); return; }
			let seen = '';
			try { seen = e.contentDocument.documentElement.innerText; } catch { /* of another origin */ }
			done(seen);
		};
		document.body.append(e);
	});
}

function form(url, method, enctype, target, fields = { delete: 'everything' }) {
	const f = document.createElement('form');
	Object.assign(f, { action: url, method, enctype, target });
	for (const name in fields) { f.append(Object.assign(document.createElement('input'), { name, value: fields[name] })); }
	document.body.append(f);
	f.submit();
	return '';
}
const framedForm = (method, enctype) => url => frame({}, name => form(url, method, enctype, name));

/* Pages of their own, which the end closes. */
const windows = [];
function popup(url, name = '_blank') {
	const w = window.open(url, name);
	if (!w) { throw new Error('no window'); }
	windows.push(w);
	return '';
}
const through = how => (url, helper) => popup(helper + '/go?how=' + how + '&to=' + encodeURIComponent(url));

/* The browser fetches what the page says is likely to be wanted next. */
const speculate = (what, rule) => head('script', { type: 'speculationrules' }, JSON.stringify({ [what]: [{ eagerness: 'immediate', ...rule }] }));

function worker(source, options) {
	return new Promise((done, failed) => {
		const w = new Worker(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })), options);
		w.onmessage = e => { done(e.data); w.terminate(); };
		w.onerror = () => failed(new Error('worker'));
	});
}

/* The page's own origin's service worker sends the request. */
async function serviceWorker(url) {
	const registration = await navigator.serviceWorker.register('/sw.js');
	const active = await new Promise(done => {
		const w = registration.installing || registration.waiting || registration.active;
		if (w.state === 'activated') { done(w); }
		w.onstatechange = () => { if (w.state === 'activated') { done(w); } };
	});
	return new Promise(done => {
		const channel = new MessageChannel();
		channel.port1.onmessage = e => done(e.data);
		active.postMessage(url, [channel.port2]);
	});
}

function cssRead(url) { return getComputedStyle(document.documentElement).getPropertyValue('--' + slug(url)); }

const attacks = {
	/* First, while the page is in front: a page behind others may not speculate. */
	'speculative prefetch': url => speculate('prefetch', { urls: [url] }),
	'speculative prefetch without referrer': url => speculate('prefetch', { urls: [url], referrer_policy: 'no-referrer' }),
	'speculative prerender': url => speculate('prerender', { urls: [url] }),

	'fetch GET': url => text(url),
	'fetch GET with credentials': url => text(url, { credentials: 'include' }),
	'fetch GET no-cors': url => blind(url),
	'fetch GET no-cors without referrer': url => blind(url, { referrerPolicy: 'no-referrer' }),
	'fetch HEAD no-cors': url => blind(url, { method: 'HEAD' }),
	'fetch GET redirected': (url, helper) => text(helper + '/redirect?to=' + encodeURIComponent(url)),
	'fetch POST text': url => text(url, post('x', 'text/plain')),
	'fetch POST urlencoded no-cors': url => blind(url, post('a=b', 'application/x-www-form-urlencoded')),
	'fetch POST no-cors without referrer': url => blind(url, { ...post('x'), referrerPolicy: 'no-referrer' }),
	'fetch POST no-cors redirected': (url, helper) => blind(helper + '/redirect?how=307&to=' + encodeURIComponent(url), post('x')),
	'fetch POST keepalive': url => blind(url, { ...post('x'), keepalive: true }),
	'fetch POST JSON': url => text(url, post('{}', 'application/json')),
	'fetch PUT': url => text(url, { method: 'PUT', body: 'x' }),
	'fetch DELETE': url => text(url, { method: 'DELETE' }),
	'fetch own method': url => text(url, { method: 'FOO' }),
	'fetch own header': url => text(url, { headers: { 'X-Own': '1' } }),
	'fetch TRACE': url => text(url, { method: 'TRACE' }),
	'XMLHttpRequest GET': url => new Promise(done => {
		const x = new XMLHttpRequest();
		x.onloadend = () => done(x.responseText);
		x.open('GET', url);
		x.send();
	}),
	'XMLHttpRequest POST': url => new Promise(done => {
		const x = new XMLHttpRequest();
		x.upload.onprogress = () => {}; // makes it preflighted
		x.onloadend = () => done(x.responseText);
		x.open('POST', url);
		x.send('x');
	}),
	'sendBeacon': url => (navigator.sendBeacon(url, 'x'), ''),
	'sendBeacon form': url => (navigator.sendBeacon(url, new URLSearchParams({ a: 'b' })), ''),
	'WebSocket': url => new Promise(done => {
		const s = new WebSocket(url.replace('http', 'ws'));
		s.onmessage = e => { done(e.data); s.close(); };
		s.onerror = () => done('');
	}),
	'EventSource': url => new Promise(done => {
		const s = new EventSource(url);
		s.onmessage = e => { done(e.data); s.close(); };
		s.onerror = () => { done(''); s.close(); };
	}),

	'img': url => load('img', { src: url }, e => e.naturalWidth === 77 ? LOOT : ''),
	'img crossorigin': url => load('img', { src: url, crossorigin: 'anonymous' }, e => e.naturalWidth === 77 ? LOOT : ''),
	'img redirected': (url, helper) => load('img', { src: helper + '/redirect?to=' + encodeURIComponent(url) }, e => e.naturalWidth === 77 ? LOOT : ''),
	'script': url => load('script', { src: url }, () => self[slug(url).replaceAll('-', '_')]),
	'script module': url => load('script', { src: url, type: 'module' }, () => self[slug(url).replaceAll('-', '_')]),
	'link stylesheet': url => load('link', { href: url, rel: 'stylesheet' }, () => cssRead(url)),
	'link preload': url => load('link', { href: url, rel: 'preload', as: 'image' }),
	'link prefetch': url => load('link', { href: url, rel: 'prefetch' }),
	'link modulepreload': url => load('link', { href: url, rel: 'modulepreload' }),
	'link icon': url => head('link', { href: url, rel: 'icon' }),
	'link manifest': url => head('link', { href: url, rel: 'manifest' }),
	'style import': url => {
		const style = document.createElement('style');
		style.textContent = '@import "' + url + '";';
		return new Promise(done => {
			style.onload = style.onerror = () => done(cssRead(url));
			document.head.append(style);
		});
	},
	'font': url => new FontFace('f', 'url("' + url + '")').load().then(() => ''),
	'video': url => load('video', { src: url, preload: 'auto' }),
	'object': url => load('object', { data: url }),
	'embed': url => load('embed', { src: url }),
	'iframe': url => frame({ src: url }),
	'iframe without referrer': url => frame({ src: url, referrerpolicy: 'no-referrer' }),
	'iframe sandboxed': url => frame({ src: url, sandbox: 'allow-scripts' }),
	'fetch from a data: frame': url => frame({ src: 'data:text/html,' + encodeURIComponent('<script>fetch("' + url + '", {method: "POST", mode: "no-cors"})</script>') }),
	'fetch from a sandboxed frame': url => frame({ sandbox: 'allow-scripts', srcdoc: '<script>fetch("' + url + '", {mode: "no-cors"})</script>' }),
	'WebSocket from a sandboxed frame': url => frame({ sandbox: 'allow-scripts', srcdoc: '<script>new WebSocket("' + url.replace('http', 'ws') + '")</script>' }),
	'report of a content policy': (url, helper) => frame({ src: helper + '/report?to=' + encodeURIComponent(url) }),

	'form GET': framedForm('GET', ''),
	'form POST urlencoded': framedForm('POST', 'application/x-www-form-urlencoded'),
	'form POST text': framedForm('POST', 'text/plain'),
	'form POST multipart': framedForm('POST', 'multipart/form-data'),
	'form POST redirected': (url, helper) => frame({}, name => form(helper + '/redirect?how=307&to=' + encodeURIComponent(url), 'POST', '', name)),

	'window.open': url => popup(url),
	'window.open without opener': url => (window.open(url, '_blank', 'noopener'), ''),
	'window.open blank, then there': url => {
		popup('about:blank');
		windows[windows.length - 1].location = url;
		return '';
	},
	'form POST into a new window': url => form(url, 'POST', 'text/plain', '_blank'),
	'link clicked': through('link'),
	'link without referrer': through('noreferrer'),
	'link with a ping': through('ping'),
	'location set': through('location'),
	'meta refresh': through('refresh'),
	'redirect of a page': through('redirect'),
	'form POST of a whole page': through('form'),

	'identity provider': url => {
		const providers = [{ configURL: url, clientId: 'x', nonce: 'y' }];
		navigator.credentials.get({ identity: { mode: 'passive', providers } }).catch(() => {});
		return '';
	},

	'worker imports': url => worker('importScripts("' + url + '"); postMessage(self["' + slug(url).replaceAll('-', '_') + '"])'),
	'worker fetches': url => worker('fetch("' + url + '").then(r => r.text()).then(postMessage, () => postMessage(""))'),
	'worker of the proxy': url => new Promise(done => {
		const w = new Worker(url);
		w.onmessage = e => done(e.data);
		w.onerror = () => done('');
	}),
	'service worker fetches': serviceWorker,
	'service worker of the proxy': url => navigator.serviceWorker.register(url).then(() => ''),
};

/* Has promises end in any case. */
const inTime = promise => Promise.race([promise, new Promise((_, failed) => setTimeout(() => failed(new Error('no end')), 5000))]);

/* Runs attacks in a few lanes; window.results says how each has ended. */
function start(list, helper) {
	window.results = {};
	const queue = list.slice();
	async function lane() {
		for (let next; (next = queue.shift());) {
			const result = results[next.name] = { read: '', problem: '' };
			try {
				result.read = String(await inTime(Promise.resolve(attacks[next.name](next.url, helper))) || '');
			} catch (e) {
				result.problem = String(e);
			}
		}
	}
	Promise.all([lane(), lane(), lane(), lane()]).then(() => { window.ended = true; });
}

/* Tries to start a login at the status page, to replace one, and to end one at the admin API. A token that the form
   would accept is given; who can read the page takes the one that is there. window.sent counts what went to the page. */
async function attackLogin(page, admin, token) {
	window.sent = 0;
	try {
		token = (await text(page, { headers: { 'Accept': 'text/html', 'Device-Flow-Refresh': '1' } })).match(/name="token" value="([^"]+)/)[1];
	} catch { /* as it should be */ }
	const fields = { token, confirm: '1' }, body = new URLSearchParams(fields), to = page + '/login';
	const out = admin + '/device_flow/sessions/default/logout';
	const atThePage = [
		() => frame({}, name => form(to, 'POST', '', name, fields)),
		() => frame({}, name => form(to, 'POST', 'text/plain', name, fields)),
		() => frame({}, name => form(to, 'GET', '', name, fields)),
		() => form(to, 'POST', '', '_blank', fields),
		() => blind(to, { method: 'POST', body }),
		() => blind(to, { method: 'POST', body, referrerPolicy: 'no-referrer' }),
		() => text(to, { method: 'POST', body }),
		() => text(to, { method: 'POST', body, headers: { 'X-Own': '1' } }),
		() => navigator.sendBeacon(to, body),
		() => blind(to + '?' + body),
		() => blind(to, { method: 'HEAD' }),
		() => blind(page),
		() => load('img', { src: page }),
		() => frame({ src: page }),
		() => popup(page),
	];
	const atTheAdminAPI = [
		() => blind(out, { method: 'POST' }),
		() => blind(out, { method: 'POST', referrerPolicy: 'no-referrer' }),
		() => text(out, { method: 'POST', headers: { 'X-Own': '1' } }),
		() => frame({}, name => form(out, 'POST', '', name, fields)),
		() => blind(out),
	];
	for (const attack of atThePage.concat(atTheAdminAPI)) {
		if (atThePage.includes(attack)) { sent++; }
		try { await inTime(attack()); } catch { /* the browser, or the proxy, holds it off */ }
	}
	window.ended = true;
}

function finish() { windows.forEach(w => w.close()); }
