// Signing in with an account that the company has elsewhere: a server of its own, and an OpenID provider with a page to sign in.
import { createHash, createSign, generateKeyPairSync, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { phone, step } from "./browser.mjs";
import { freshServer } from "./servers.mjs";

/** An OpenID provider. Whoever types a name is that person. */
async function provider() {
    const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    const asked = new Map(); // by code
    const base64url = (text) => Buffer.from(text).toString("base64url");
    const sign = (claims) => {
        const text = `${base64url(JSON.stringify({ alg: "RS256", kid: "1" }))}.${base64url(JSON.stringify(claims))}`;
        return `${text}.${createSign("RSA-SHA256").update(text).sign(privateKey).toString("base64url")}`;
    };
    const paths = {
        "/.well-known/openid-configuration": () => ({
            issuer: url,
            authorization_endpoint: `${url}/authorize`,
            token_endpoint: `${url}/token`,
            jwks_uri: `${url}/keys`,
            id_token_signing_alg_values_supported: ["RS256"],
        }),
        "/keys": () => ({ keys: [{ ...publicKey.export({ format: "jwk" }), kid: "1", alg: "RS256", use: "sig" }] }),
        "/authorize": (query) => {
            const hidden = ["redirect_uri", "state", "nonce", "code_challenge"].map((name) => `<input type="hidden" name="${name}" value="${query.get(name)}">`);
            return `<!doctype html><html lang="en"><meta charset="utf-8"><title>ACME</title><form action="/signed-in">${hidden.join("")}
                <label>Who are you? <input name="name"></label><button name="go" value="yes">Sign in</button><button name="go" value="no">Cancel</button></form></html>`;
        },
        "/signed-in": (query) => {
            const back = new URL(query.get("redirect_uri"));
            back.searchParams.set("state", query.get("state"));
            if (query.get("go") === "no") {
                back.searchParams.set("error", "access_denied");
                return back;
            }
            const code = randomUUID();
            asked.set(code, query);
            back.searchParams.set("code", code);
            return back;
        },
        "/token": (form) => {
            const query = asked.get(form.get("code"));
            asked.delete(form.get("code"));
            const challenge = createHash("sha256").update(form.get("code_verifier")).digest("base64url");
            if (query?.get("code_challenge") !== challenge) return null;
            const now = Math.floor(Date.now() / 1000);
            const name = query.get("name");
            const claims = { sub: `acme-${name}`, preferred_username: name.toLowerCase(), name: `${name} of ACME`, auth_time: now };
            return { access_token: "x", token_type: "Bearer", id_token: sign({ iss: url, aud: "parley", iat: now, exp: now + 60, nonce: query.get("nonce"), ...claims }) };
        },
    };
    const server = createServer(async (request, answer) => {
        const { pathname, searchParams } = new URL(request.url, url);
        let text = "";
        for await (const chunk of request) text += chunk;
        const result = paths[pathname]?.(request.method === "POST" ? new URLSearchParams(text) : searchParams);
        if (!result) answer.writeHead(400).end('{"error":"invalid_grant"}');
        else if (result instanceof URL) answer.writeHead(302, { Location: result.href }).end();
        else if (typeof result === "string") answer.writeHead(200, { "Content-Type": "text/html" }).end(result);
        else answer.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify(result));
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${server.address().port}`;
    return { url, close: () => server.close() };
}

export async function companyAccount({ parley, open, look }) {
    const acme = await provider();
    const { address, stop } = await freshServer(
        parley,
        (address) => `client_api: {public_url: "${address}"}
users:
  password_login: false
  sso:
    providers:
      - {id: acme, name: ACME, issuer: "${acme.url}", client_id: parley}
`,
    );
    const as = async (page, name) => {
        await page.fill("[name=name]", name);
        await page.click("text=Sign in");
    };
    const page = await open("about:blank", phone);
    try {
        await step("where there is a company account, one signs in there", async () => {
            await page.goto(`${address}/?loginToken=not-asked-for`);
            await page.waitForSelector("text=Sign in with ACME");
            await page.waitForSelector("input[name=password]", { state: "detached" });
            if (await page.locator(".problem").count()) throw new Error("a token that nobody asked for was tried");
            await look(page, "login-company");
            await page.click("text=Sign in with ACME");
            await page.click("text=Cancel");
            await page.waitForSelector("text=You are not signed in");
            await look(page, "company-cancelled");
            await page.click(".button");
            await page.click("text=Sign in with ACME");
            await as(page, "Zoë");
            await page.waitForSelector(".sidebar >> text=@zoe:");
            if (page.url().includes("loginToken")) throw new Error("the token is still in the address");
        });
        await step("what needs a password elsewhere is confirmed at the company", async () => {
            await page.click("a[href='#/settings']");
            await page.waitForSelector("text=Sign in another device");
            if (await page.locator("text=Change the password").count()) throw new Error("there is a password to change");
            await page.click("text=Sign in another device");
            await page.waitForSelector("dialog");
            await look(page, "confirm-elsewhere");
            const there = page.context().waitForEvent("page");
            await page.click("dialog a.primary");
            const confirming = await there;
            confirming.usual = page.usual;
            await confirming.waitForSelector("text=Confirm with ACME");
            await look(confirming, "company-confirm");
            await confirming.click("text=Confirm with ACME");
            await as(confirming, "Someone");
            await confirming.waitForSelector("text=That was another account");
            await confirming.goBack();
            await confirming.goBack();
            await confirming.click("text=Confirm with ACME");
            await as(confirming, "Zoë");
            await confirming.waitForSelector("text=You can close this page");
            await look(confirming, "company-confirmed");
            await confirming.close();
            await page.bringToFront();
            const done = page.waitForSelector("#device-link", { state: "attached" });
            // In a browser without a window nobody comes back to a tab.
            await Promise.race([done, page.click("dialog button.primary")]);
            await done;
        });
    } finally {
        await page.context().close();
        await stop();
        acme.close();
    }
}
