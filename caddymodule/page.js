/* Keeps the page true: when the stream tells of a change it fetches the page again
   and puts in the new <main>, so that the markup has one source, the server. ES5,
   for the browser in an old control room. Without it the page works too. */
(function () {
	'use strict';
	var doc = document, root = doc.documentElement, body = doc.body;
	if (!window.addEventListener || !doc.importNode) { return; }
	root.className += ' js';

	var page = body.getAttribute('data-page');
	var source = null, wait = 0, timer = 0, loading = false, again = false;
	var startedAt = 0, startedWith = 0;

	function id(name) { return doc.getElementById(name); }
	function now() { return new Date().getTime(); }
	function two(n) { return (n < 10 ? '0' : '') + n; }
	function each(list, f) { for (var i = 0; i < list.length; i++) { f(list[i]); } }
	function say(text) { id('said').textContent = text; }
	function told(name) { return body.getAttribute('data-' + name); }

	/* Times in the language of the page, and in the reader's own kind of it. */
	var lang = root.lang, own = navigator.language || lang;
	if (own.split('-')[0] === lang.split('-')[0]) { lang = own; }

	/* Times as the reader's own clock shows them; the server's stay as a hint. */
	function localTimes() {
		each(id('main').querySelectorAll('time'), function (t) {
			var d = new Date(t.getAttribute('datetime')), text;
			if (isNaN(d.getTime())) { return; }
			try {
				text = d.toDateString() === new Date().toDateString() ?
					d.toLocaleTimeString(lang, { hour: 'numeric', minute: '2-digit' }) :
					d.toLocaleString(lang, { year: 'numeric', month: 'short', day: 'numeric', hour: 'numeric', minute: '2-digit' });
			} catch (e) { text = d.toLocaleString(); }
			t.title = t.textContent;
			t.textContent = text;
		});
	}

	/* The time left counts from what the server said: the reader's clock may be wrong. */
	function startClock() {
		var clock = id('clock');
		startedAt = now();
		startedWith = clock ? Number(clock.getAttribute('data-left')) : 0;
		tick();
	}
	function tick() {
		var clock = id('clock'), bar = id('bar'), left, h;
		if (!clock) { return; }
		left = Math.max(0, Math.min(startedWith, startedWith - Math.floor((now() - startedAt) / 1000)));
		h = Math.floor(left / 3600);
		clock.textContent = (h ? h + ':' + two(Math.floor(left / 60) % 60) : Math.floor(left / 60)) + ':' + two(left % 60);
		bar.value = left;
		bar.parentNode.className = left < 60 ? 'time soon' : 'time';
	}

	function copyCode() {
		var button = id('copy'), text = id('code').getAttribute('data-code');
		function done(ok) {
			var words = told(ok ? 'copied' : 'not-copied').split('|');
			button.textContent = words[0];
			say(words[1]);
			setTimeout(function () { button.textContent = told('copy'); }, 2500);
		}
		/* navigator.clipboard is there on trustworthy origins only, not on a LAN address. */
		if (navigator.clipboard && navigator.clipboard.writeText) {
			navigator.clipboard.writeText(text).then(function () { done(true); }, function () { done(copyOld(text)); });
		} else { done(copyOld(text)); }
	}
	function copyOld(text) {
		var area = doc.createElement('textarea'), ok = false;
		area.value = text;
		area.className = 'sr';
		body.appendChild(area);
		area.select();
		try { ok = doc.execCommand('copy'); } catch (e) { ok = false; }
		body.removeChild(area);
		id('copy').focus();
		return ok;
	}

	function wire() {
		var copy = id('copy');
		if (copy) {
			copy.hidden = false;
			copy.onclick = copyCode;
		}
		each(id('main').querySelectorAll('form'), function (form) {
			var button = form.querySelector('button');
			form.onsubmit = function () {
				if (button.getAttribute('aria-disabled')) { return false; }
				button.setAttribute('aria-disabled', 'true');
				button.textContent = button.getAttribute('data-busy');
			};
		});
		localTimes();
		startClock();
	}

	function replace(fresh) {
		var old = id('main'), main = fresh.getElementById('main'), state = old.getAttribute('data-state');
		if (!main) { return; }
		if (main.getAttribute('data-version') === old.getAttribute('data-version')) {
			/* Nothing new, but a form that has been open overnight needs a young token. */
			each(old.querySelectorAll('input[name=token]'), function (input) {
				input.value = fresh.querySelector('input[name=token]').value;
			});
			return;
		}
		main = doc.importNode(main, true);
		var focused = doc.activeElement, name = focused && focused.id, inside = focused && old.contains(focused);
		old.parentNode.replaceChild(main, old);
		doc.title = fresh.title;
		id('tab-icon').href = fresh.getElementById('tab-icon').getAttribute('href');
		wire();
		if (inside) { (name && id(name) || main).focus(); }
		if (main.getAttribute('data-state') !== state) { say(main.getAttribute('data-said')); }
	}

	function load() {
		if (loading) { again = true; return; }
		loading = true;
		again = false;
		var x = new XMLHttpRequest();
		x.open('GET', page);
		x.responseType = 'document';
		x.timeout = 10000;
		x.setRequestHeader('Accept', 'text/html');
		x.setRequestHeader('Device-Flow-Refresh', '1'); /* nobody new is here: ask for no code */
		x.onloadend = function () {
			loading = false;
			if (x.status === 200 && x.response) { replace(x.response); }
			if (again) { load(); }
		};
		x.send();
	}

	function lost(yes) {
		var line = id('lost');
		id('live').hidden = yes;
		line.textContent = yes ? told('lost') : '';
		line.hidden = !yes;
	}

	function connect() {
		clearTimeout(timer);
		if (source) { source.close(); }
		source = new EventSource(told('events'));
		source.onopen = function () { wait = 0; lost(false); };
		source.addEventListener('status', load);
		source.onerror = function () {
			lost(true);
			/* After an answer that is no stream (503 while Caddy restarts) EventSource gives up. */
			if (source.readyState === 2) {
				wait = Math.min(30000, wait ? wait * 2 : 1000);
				timer = setTimeout(connect, wait);
			}
		};
	}

	wire();
	setInterval(tick, 1000);
	setInterval(load, 3600000);
	if (window.EventSource) {
		connect();
		window.addEventListener('pagehide', function () { clearTimeout(timer); source.close(); });
		/* Back from the browser's memory: the form's button is still busy, the stream closed. */
		window.addEventListener('pageshow', function (e) { if (e.persisted) { id('main').setAttribute('data-version', ''); connect(); } });
	} else {
		setInterval(load, 5000);
	}
})();
