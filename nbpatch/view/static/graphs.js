var t={style:"",paths:()=>null,circuit:()=>null};export{t as bundle};
