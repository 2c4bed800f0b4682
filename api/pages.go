package api

import (
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"io"

	"golang.org/x/text/language"
)

// page is what a person meets in the browser while signing in. Which fields it has depends on Kind, a key of pageTexts.
type page struct {
	Kind      string
	User      string
	Operation string
	Session   string
	Client    string
	Continue  template.URL
	Providers []link
	Home      string
	Request   string
}

// link is one of the providers to choose from.
type link struct{ ID, Name, Href string }

// continueURL may have an app's scheme, which html/template would take for an attack. user.BeginSSO has checked it.
func continueURL(checked string) template.URL { return template.URL(checked) }

// pageText is a page in one language.
type pageText struct{ Title, Text, Button string }

// pageLanguages are in the order of pageTexts' columns; the first is for those who speak none of them.
var pageLanguages = []language.Tag{language.English, language.German}

var pageTexts = map[string][]pageText{
	"choose": {
		{"Sign in", "Which account do you want to sign in with?", ""},
		{"Anmelden", "Mit welchem Konto möchtest du dich anmelden?", ""},
	},
	"trust": {
		{"Continue to this program?", "It will be signed in as you and can read and write all your messages. Go on only if you came from there yourself.", "Continue"},
		{"Weiter zu diesem Programm?", "Es wird mit deinem Konto angemeldet und kann alle deine Nachrichten lesen und schreiben. Fahre nur fort, wenn du selbst von dort gekommen bist.", "Weiter"},
	},
	"confirm": {
		{"Confirm that it is you", "Somebody who is signed in with your account wants to do this. If it was not you, close this page and sign out your other devices.", "Confirm with %s"},
		{"Bestätige, dass du es bist", "Jemand, der mit deinem Konto angemeldet ist, möchte das tun. Wenn du es nicht warst, schließe diese Seite und melde deine anderen Geräte ab.", "Mit %s bestätigen"},
	},
	"confirmed": {
		{"Confirmed", "You can close this page and go on where you came from.", ""},
		{"Bestätigt", "Du kannst diese Seite schließen und dort weitermachen, wo du hergekommen bist.", ""},
	},
	"expired": {
		{"Please start again", "Signing in took too long, or was begun in another browser.", "Sign in"},
		{"Bitte beginne noch einmal", "Die Anmeldung hat zu lange gedauert, oder sie wurde in einem anderen Browser begonnen.", "Anmelden"},
	},
	"cancelled": {
		{"You are not signed in", "Signing in was cancelled.", "Sign in"},
		{"Du bist nicht angemeldet", "Die Anmeldung wurde abgebrochen.", "Anmelden"},
	},
	"unavailable": {
		{"Signing in does not work at the moment", "Your company's sign-in service does not answer as it should. Please try again later. If that does not help, tell your administrator the number below.", "Try again"},
		{"Die Anmeldung geht im Moment nicht", "Der Anmeldedienst deiner Firma antwortet nicht so, wie er sollte. Bitte versuche es später noch einmal. Wenn das nicht hilft, sag denen, die den Server betreuen, die Nummer unten.", "Noch einmal versuchen"},
	},
	"refused": {
		{"You may not sign in here", "Your account does not belong to those who use this server. Ask your administrator if it should.", ""},
		{"Du darfst dich hier nicht anmelden", "Dein Konto gehört nicht zu denen, die diesen Server benutzen. Frag die, die ihn betreuen, wenn es das sollte.", ""},
	},
	"no_account": {
		{"You have no account here", "Your administrator has to make one for you first.", ""},
		{"Du hast hier kein Konto", "Wer den Server betreut, muss erst eines für dich anlegen.", ""},
	},
	"locked": {
		{"This account is locked", "Only an administrator can unlock it.", ""},
		{"Dieses Konto ist gesperrt", "Nur wer den Server betreut, kann es entsperren.", ""},
	},
	"deactivated": {
		{"This account no longer exists", "It has been deactivated, and cannot be used again.", ""},
		{"Dieses Konto gibt es nicht mehr", "Es wurde gelöscht und kann nicht wieder benutzt werden.", ""},
	},
	"other_account": {
		{"That was another account", "You have to sign in with the account that you want to confirm something for. Sign out at your company's sign-in service, then try again.", ""},
		{"Das war ein anderes Konto", "Du musst dich mit dem Konto anmelden, für das du etwas bestätigen möchtest. Melde dich beim Anmeldedienst deiner Firma ab und versuche es dann noch einmal.", ""},
	},
}

// operationTexts say what is to be confirmed.
var operationTexts = map[string][]string{
	"password":           {"Change the password", "Das Passwort ändern"},
	"deactivate":         {"Delete the account for ever", "Das Konto für immer löschen"},
	"cross-signing keys": {"Replace the keys by which others know you", "Die Schlüssel ersetzen, an denen andere dich erkennen"},
	"get_login_token":    {"Sign in another device", "Ein weiteres Gerät anmelden"},
	"delete devices":     {"Sign out devices", "Geräte abmelden"},
}

// authDone tells the client whose window opened the page. Spec v1.19 client-server-api/#fallback
const authDone = `if (window.onAuthDone) window.onAuthDone(); else if (window.opener) window.opener.postMessage("authDone", "*");`

const pageStyle = `:root { color-scheme: light dark; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: light-dark(#f5f4f0, #16181d); color: light-dark(#1d1f24, #eceef2); }
main { box-sizing: border-box; width: 100%; max-width: 26rem; padding: 2rem 1.5rem; text-align: center; }
svg { width: 4rem; color: light-dark(#0b6b57, #3fc5a4); }
h1 { font-size: 1.3rem; margin: 0.5rem 0; }
p { margin: 0.75rem 0; overflow-wrap: anywhere; }
small { color: light-dark(#595e69, #a9b0bd); }
.button { display: block; box-sizing: border-box; width: 100%; margin: 0.75rem 0; padding: 0.75rem 1rem; border: 0; border-radius: 14px; font: inherit; font-weight: 600; cursor: pointer; text-decoration: none; background: light-dark(#0b6b57, #3fc5a4); color: light-dark(#ffffff, #06251d); }
.button:focus-visible { outline: 3px solid currentColor; outline-offset: 2px; }`

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="{{.Lang}}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{{.Text.Title}} · Parley</title>
<style>` + pageStyle + `</style>
</head>
<body>
<main>
<svg viewBox="0 0 48 48" aria-hidden="true"><path d="M8 20v8M16 12v24M24 6v36M32 14v20M40 20v8" stroke="currentColor" stroke-width="4" stroke-linecap="round"/></svg>
<h1>{{.Text.Title}}</h1>
{{with .Client}}<p><strong>{{.}}</strong></p>{{end}}
{{with .OperationText}}<p><strong>{{.}}</strong></p>{{end}}
{{with .User}}<p>{{.}}</p>{{end}}
<p>{{.Text.Text}}</p>
{{if .Session}}
{{range .Providers}}<form method="post">
<input type="hidden" name="session" value="{{$.Session}}">
<input type="hidden" name="provider" value="{{.ID}}">
<button class="button">{{printf $.Text.Button .Name}}</button>
</form>{{end}}
{{else}}
{{range .Providers}}<a class="button" href="{{.Href}}">{{.Name}}</a>{{end}}
{{with .Continue}}<a class="button" href="{{.}}">{{$.Text.Button}}</a>{{end}}
{{if and .Home .Text.Button}}<a class="button" href="{{.Home}}">{{.Text.Button}}</a>{{end}}
{{end}}
{{with .Request}}<p><small>{{.}}</small></p>{{end}}
</main>
{{if eq .Kind "confirmed"}}<script>` + authDone + `</script>{{end}}
</body>
</html>
`))

// pagePolicy lets a page do nothing but what is written above.
var pagePolicy = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; style-src '" + hashSource(pageStyle) + "'; script-src '" + hashSource(authDone) + "'"

func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// write renders the page in the best of the languages that the browser asks for.
func (p page) write(w io.Writer, acceptLanguage string) error {
	_, i := language.MatchStrings(language.NewMatcher(pageLanguages), acceptLanguage)
	base, _ := pageLanguages[i].Base()
	shown := struct {
		page
		Lang          string
		Text          pageText
		OperationText string
	}{p, base.String(), pageTexts[p.Kind][i], ""}
	if texts, ok := operationTexts[p.Operation]; ok {
		shown.OperationText = texts[i]
	} else {
		shown.OperationText = p.Operation // better in a programmer's words than not at all
	}
	return pageTemplate.Execute(w, shown)
}
