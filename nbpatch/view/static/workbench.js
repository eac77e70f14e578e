const a={render(){}},b=()=>{};export{a as default,b as mountStatic};
