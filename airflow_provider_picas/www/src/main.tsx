const Page = () => <p>PiCaS</p>;

// The UI imports one address once, whatever number of places shows it, and looks the component up by the place's name.
Object.assign(globalThis, { AirflowPlugin: Page, PiCaS: Page, Tokens: Page });

export default Page;
